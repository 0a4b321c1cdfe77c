-- How often the task was given back (status interrupt) since a person queued the build or the last result came.
ALTER TABLE builds ADD COLUMN interrupts BIGINT NOT NULL DEFAULT 0;
