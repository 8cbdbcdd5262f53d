"""Detection window by depth of installation: time from the first warning to the break."""
