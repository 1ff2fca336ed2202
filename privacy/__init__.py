"""What a released number costs: events, mechanisms, ledger, accountants. No flwr, no yaml, no sockets."""
