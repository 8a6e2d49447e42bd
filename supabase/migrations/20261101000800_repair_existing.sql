-- Repairs the documents that are there already, in batches with a commit each: the call must not run inside a transaction,
-- and where an editor sends all of a file at once, the statements are run one at a time. Interrupted, it is run again.
-- Many documents take minutes, hence no statement timeout; it is set in a transaction of its own, because a file with
-- transactions is what `supabase db push` sends statement by statement, and only then may the call commit.
begin;
set statement_timeout = 0;
commit;
call krai_core.repair_documents();
reset statement_timeout;
