"""PyMongo: differences between its versions, its listeners, and the private attributes that are used."""
