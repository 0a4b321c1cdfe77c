-- The hosts on which the machine of its task failed before the worker's first request, since it was queued: a JSON list of names, one entry
-- for each time (src/queue/failure.rs).
ALTER TABLE builds ADD COLUMN failures TEXT NOT NULL DEFAULT '[]';
