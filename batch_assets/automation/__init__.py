"""What runs when: partitions, jobs, and the decision whether a batch needs work."""
