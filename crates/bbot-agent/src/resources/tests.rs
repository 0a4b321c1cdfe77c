//! The verdicts by table, and what is told of them.
