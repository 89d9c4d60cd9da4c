"""The broker's rules: sequence, fan-out, slots, unique events, confirmations. No sockets, no clock."""
