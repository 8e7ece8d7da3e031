#!/bin/sh
# Install Open MPI and ssh for the user `crepe`. The MPI operator mounts the keys of a job at /home/crepe/.ssh.
set -eu
export DEBIAN_FRONTEND=noninteractive

apt-get update -qq
apt-get install -y -qq --no-install-recommends openmpi-bin openssh-client openssh-server
rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*

# sshd runs as the user, who cannot listen at port 22. The keys belong to root, so StrictModes would refuse them.
cat >/home/crepe/.sshd_config <<'CONFIG'
Port 2222
HostKey /home/crepe/.ssh/id_rsa
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
CONFIG
# Each job has new keys, which no list of known hosts contains.
cat >/etc/ssh/ssh_config.d/crepe.conf <<'CONFIG'
Host *
    Port 2222
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
CONFIG
