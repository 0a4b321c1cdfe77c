-- Lists by name, whose case does not count. (Nothing looked anything up by builds_package.)
DROP INDEX builds_package;
CREATE INDEX builds_name ON builds (LOWER(package), position);
CREATE INDEX submissions_name ON submissions (LOWER(name), id);
