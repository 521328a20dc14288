"""What is peculiar to PyMongo: its versions, its listeners, its private parts."""
