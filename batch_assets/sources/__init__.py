"""Where documents come from: the embedded data set, local files, data sets of the hub."""
