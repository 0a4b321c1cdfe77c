-- Which store this is: an object store says whose it is, and only that one removes from it (src/objects/owner.rs). A back-up does not
-- have it: what comes of one is another store.
CREATE TABLE identity (
    one BIGINT PRIMARY KEY NOT NULL,
    id TEXT NOT NULL
);
