"""The output of the commands: status, top, check, trace and doctor."""
