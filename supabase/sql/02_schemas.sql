-- Schemas: the one that is the API, and the one that cannot be called over HTTP.
--
--   krai_core      what clients use: documents, stages, stage_runs, the views and the public functions. All tables live
--                  here, so that a dump of the schema loses nothing; tables closed to clients have no grants
--   krai_private   the functions and views that the public ones are built from; PostgREST never exposes it

create schema if not exists krai_core;

create schema if not exists krai_private;
comment on schema krai_private is
'Building blocks of the functions in krai_core. Not for clients; never expose it over HTTP.';
