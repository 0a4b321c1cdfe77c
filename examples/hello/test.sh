#!/bin/sh
# The greeting is right with and without a name.
check () {
  if [ "$2" = "$3" ]; then echo "ok: $1"; else echo "failed: $1: expected '$2', got '$3'"; exit 1; fi
}
check 'no name' 'Hello, World!' "$(./hello)"
check 'a name' 'Hello, Bot!' "$(./hello Bot)"
