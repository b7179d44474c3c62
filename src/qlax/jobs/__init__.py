"""Jobs of sweeps: training runs in processes of their own, on this machine or on Ray."""
