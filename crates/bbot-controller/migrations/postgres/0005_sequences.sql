-- PostgreSQL alone, in one series with the migrations of both: a row that every submission and hand-out has to
-- change would have them all wait for each other. Numbers that are never used do not matter.
CREATE SEQUENCE submission_numbers;
CREATE SEQUENCE build_numbers;
CREATE SEQUENCE queue_numbers;
CREATE SEQUENCE run_numbers;
SELECT setval('submission_numbers', value + 1, false) FROM counters WHERE name = 'submission';
SELECT setval('build_numbers', value + 1, false) FROM counters WHERE name = 'build';
SELECT setval('queue_numbers', value + 1, false) FROM counters WHERE name = 'queue';
SELECT setval('run_numbers', value + 1, false) FROM counters WHERE name = 'run';
DROP TABLE counters;
