"""The broadcaster: doors for events, group commit into the inbox, Socket.IO; and beside it the bridge and the sweeper."""
