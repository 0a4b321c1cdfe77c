-- How often the lease of the task lapsed since a person queued the build or the last result came.
ALTER TABLE builds ADD COLUMN lapses BIGINT NOT NULL DEFAULT 0;
-- The number of the run (one handing out of a task) that is under way or was the last.
ALTER TABLE builds ADD COLUMN run BIGINT;

-- number: of the run; its raw log has it in its name.
-- path: what the session's URL ends with; others than the id, which brings results.
-- ended: lapsed (a result is still taken) | given-back | over; NULL while it is the build's session.
-- renews: 1 when the agent renews its lease; confirmed: when it did so first.
-- agent ... toolchain_version: who has it, kept here too since a build may be with two of them at once.
ALTER TABLE sessions ADD COLUMN number BIGINT;
ALTER TABLE sessions ADD COLUMN path TEXT;
ALTER TABLE sessions ADD COLUMN ended TEXT;
ALTER TABLE sessions ADD COLUMN renews BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN confirmed BIGINT;
ALTER TABLE sessions ADD COLUMN agent TEXT;
ALTER TABLE sessions ADD COLUMN machine TEXT;
ALTER TABLE sessions ADD COLUMN machine_summary TEXT;
ALTER TABLE sessions ADD COLUMN toolchain_name TEXT;
ALTER TABLE sessions ADD COLUMN toolchain_version TEXT;
UPDATE sessions SET
    agent = (SELECT b.agent FROM builds b WHERE b.session = sessions.id),
    machine = (SELECT b.machine FROM builds b WHERE b.session = sessions.id),
    machine_summary = (SELECT b.machine_summary FROM builds b WHERE b.session = sessions.id),
    toolchain_name = (SELECT b.toolchain_name FROM builds b WHERE b.session = sessions.id),
    toolchain_version = (SELECT b.toolchain_version FROM builds b WHERE b.session = sessions.id);
CREATE UNIQUE INDEX sessions_path ON sessions (path);
CREATE UNIQUE INDEX sessions_number ON sessions (number);
CREATE INDEX sessions_build ON sessions (build);
CREATE INDEX sessions_issued ON sessions (issued);
INSERT INTO counters (name, value) VALUES ('run', 0);

-- 1 when the result came after its lease had lapsed.
ALTER TABLE attempts ADD COLUMN late BIGINT NOT NULL DEFAULT 0;
-- The run that it was.
ALTER TABLE attempts ADD COLUMN run BIGINT;
CREATE INDEX attempts_finished ON attempts (finished);
CREATE INDEX builds_lease ON builds (state, lease_until);
