-- When a controller was seen to run last while something was being built, in steady time: what leases run on after a start
-- (src/queue/lease.rs).
CREATE TABLE alive (
    one BIGINT PRIMARY KEY NOT NULL,
    seen BIGINT NOT NULL
);
INSERT INTO alive (one, seen) VALUES (1, 0);
