"""Sources of documents: the embedded data set, local files, the Hugging Face hub and the landing folder."""
