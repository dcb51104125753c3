"""What tests run against: a Hub, an object storage, a cluster, full disks, processes that die."""
