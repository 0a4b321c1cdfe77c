-- Submissions: what their tasks say of the package beyond name, version and source, and which builds there are not and why, both
-- as JSON (src/package). Builds: the package configuration.
ALTER TABLE submissions ADD COLUMN particulars TEXT NOT NULL DEFAULT '{}';
ALTER TABLE submissions ADD COLUMN excluded TEXT NOT NULL DEFAULT '[]';
ALTER TABLE builds ADD COLUMN package_configuration TEXT NOT NULL DEFAULT 'default';

-- Versions of one package that wait: each package configuration by itself.
DROP INDEX builds_versions;
CREATE INDEX builds_versions ON builds (package, configuration, target, package_configuration, submitter, class, place) WHERE state = 'queued';

-- Rebuilds by themselves (src/queue/rebuild.rs).
--
-- checked: when it was last built, or found to be as it would be built now; NULL: it is not rebuilt by itself.
-- soft: 1 when the task may be answered `skip`: it was queued by itself, and not because much time has passed.
-- *_checksum: what the last result was made with; the agent's, worker's and dependency's as they were brought.
ALTER TABLE builds ADD COLUMN checked BIGINT;
ALTER TABLE builds ADD COLUMN soft BIGINT NOT NULL DEFAULT 0;
ALTER TABLE builds ADD COLUMN controller_checksum TEXT;
ALTER TABLE builds ADD COLUMN machine_checksum TEXT;
ALTER TABLE builds ADD COLUMN agent_checksum TEXT;
ALTER TABLE builds ADD COLUMN worker_checksum TEXT;
ALTER TABLE builds ADD COLUMN dependency_checksum TEXT;
UPDATE builds SET checked = finished WHERE state = 'built';

-- soft: 1 when the checksums of the last result went out with the task.
ALTER TABLE sessions ADD COLUMN soft BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN controller_checksum TEXT;
ALTER TABLE sessions ADD COLUMN machine_checksum TEXT;

-- What may be due, the oldest first, and whether there is a newer one.
CREATE INDEX builds_checked ON builds (checked) WHERE state = 'built' AND checked IS NOT NULL;
CREATE INDEX builds_finished ON builds (finished) WHERE state = 'built' AND checked IS NOT NULL;
CREATE INDEX builds_newer ON builds (package, configuration, target, package_configuration, id) WHERE state = 'built';
