-- Lanes (src/queue/lane.rs).
--
-- lane: what a build asks of an agent beyond a machine for its configuration; '' is the plain one: nothing.
-- breakpoint: where an interactive build stops. login: how a person gets to the machine of the agent that has it.
-- auxiliaries: machines beside its own, with the names of their environments, as JSON.
ALTER TABLE builds ADD COLUMN lane TEXT NOT NULL DEFAULT '';
ALTER TABLE builds ADD COLUMN breakpoint TEXT;
ALTER TABLE builds ADD COLUMN login TEXT;
ALTER TABLE builds ADD COLUMN auxiliaries TEXT NOT NULL DEFAULT '[]';
ALTER TABLE sessions ADD COLUMN auxiliaries TEXT NOT NULL DEFAULT '[]';
ALTER TABLE attempts ADD COLUMN auxiliaries TEXT NOT NULL DEFAULT '[]';
-- service: the service that a submission is of, with its number there, as JSON.
ALTER TABLE submissions ADD COLUMN service TEXT;

-- What waits, waits by configuration and lane.
DROP INDEX builds_queue;
DROP INDEX builds_repository;
DROP INDEX builds_versions;
CREATE INDEX builds_queue ON builds (configuration, target, lane, place, id) WHERE state = 'queued';
CREATE INDEX builds_repository ON builds (configuration, target, lane, repository, place, id) WHERE state = 'queued';
CREATE INDEX builds_versions ON builds (package, configuration, target, package_configuration, lane, submitter, class, place) WHERE state = 'queued';
-- Which lanes there are that something waits in.
CREATE INDEX builds_lanes ON builds (lane, configuration, target) WHERE state = 'queued' AND lane <> '';
