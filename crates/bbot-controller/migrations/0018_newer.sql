-- Whether there is a newer build of the same: one that has had a result, whatever it is at now.
DROP INDEX builds_newer;
CREATE INDEX builds_newer ON builds (package, configuration, target, package_configuration, id) WHERE attempt > 0;
