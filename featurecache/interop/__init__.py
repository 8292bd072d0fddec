"""To and from the data sets and tables of other libraries, each imported where it is used."""
