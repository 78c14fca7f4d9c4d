"""Operations that people start from the command line or in the UI."""
