"""ai_query in open-source Spark SQL: endpoints, the client, the functions, and what needs a parser."""
