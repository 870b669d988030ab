"""Load problems from files, folders, named sets and the Hugging Face Hub."""
