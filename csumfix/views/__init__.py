"""What people look at: status, top, trace and check."""
