"""Asset checks: what the tables promise, and what a person should look at."""
