"""What goes over the wire: JSON that is read field by field, errors with a type, and events."""
