"""A test double of Firecracker and of its jailer: programs that take the same orders, with QEMU behind them.

Where KVM or Firecracker itself is not to be had, the driver's own code boots real guests with it. It takes nothing
that Firecracker would refuse, by a table of its own (`schema`), and shares none with the driver.
"""
