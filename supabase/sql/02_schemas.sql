-- Schemas: the one that is API, and the one that nobody can call over HTTP.
--
--   krai_core      what clients use: documents, stages, stage_runs, the views and the public functions. All tables stay here,
--                  so that a dump of the schema loses nothing; those that clients must not touch have no grants
--   krai_private   functions and views that the public ones are made of. PostgREST never exposes it

create schema if not exists krai_core;

create schema if not exists krai_private;
comment on schema krai_private is
'What the functions of krai_core are made of. Not for clients, and never to be exposed over HTTP.';
