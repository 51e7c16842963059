"""Go: rules, features, tree search, games against oneself and matches, compiled; records and protocols."""
