"""What runs in an emulated device, and the emulator's plugin that counts what it executes."""
