-- Repairs the documents that are there already, in batches with a commit each: this file must not run inside a transaction.
-- Interrupted, it is run again.
call krai_core.repair_documents();
