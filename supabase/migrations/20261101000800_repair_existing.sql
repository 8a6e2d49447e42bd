-- Repairs the documents that are there already, in batches with a commit each: this file must not run inside a transaction,
-- and where an editor sends all of a file at once, its statements are run one at a time. Many documents take minutes, hence
-- no statement timeout. Interrupted, it is run again.
set statement_timeout = 0;
call krai_core.repair_documents();
reset statement_timeout;
