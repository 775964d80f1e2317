"""What has been learnt, as one sees it from outside: read from a store's ledgers, checked, packed up, carried elsewhere."""
