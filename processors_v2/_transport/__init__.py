"""How calls reach the database, in what has no colour: requests and statements, errors as classes, repeats."""
