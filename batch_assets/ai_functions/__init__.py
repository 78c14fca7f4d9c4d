"""``ai_query`` and its family for open-source Spark SQL: endpoints, client, functions and planner."""
