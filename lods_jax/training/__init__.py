"""From a configuration to a loop of compiled steps."""
