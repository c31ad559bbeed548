"""UEFI Secure Boot: variable stores and keys."""
