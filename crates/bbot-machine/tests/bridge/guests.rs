//! Real guests on a bridge.
