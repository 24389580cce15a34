"""What a column of a table is: a method with its options, defaults and name."""
