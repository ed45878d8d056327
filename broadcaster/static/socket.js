// A Socket.IO client as small as this page needs it: one namespace, WebSocket only, events in, nothing out but the token.
//
// engine.io: 0 open, 1 close, 2 ping, 3 pong, 4 message. Socket.IO within a message: 0 connect, 1 disconnect, 2 event, 4 refused;
// each followed by "/namespace,". Source: https://github.com/socketio/socket.io-protocol (version 5).

const LONGEST_PAUSE_MS = 10_000;

export class Socket {
  // on: { connected(), refused(message), lost(), event(name, argument) }
  constructor(namespace, auth, on) {
    this.prefix = `${namespace},`;
    this.auth = auth;
    this.on = on;
    this.tries = 0;
    this.ended = false;
  }

  open() {
    const url = new URL("/socket.io/?EIO=4&transport=websocket", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(url);
    this.socket.onmessage = ({ data }) => typeof data === "string" && this.read(data);
    this.socket.onclose = () => this.lost();
    this.silence(30_000);
  }

  close() {
    this.ended = true;
    clearTimeout(this.timer);
    this.socket.close();
  }

  read(packet) {
    if (packet[0] === "0") {
      const { pingInterval, pingTimeout } = JSON.parse(packet.slice(1));
      this.patience = pingInterval + pingTimeout;
      this.socket.send(`40${this.prefix}${JSON.stringify(this.auth)}`);
    } else if (packet[0] === "2") {
      this.socket.send("3");
    } else if (packet[0] === "4" && packet.startsWith(this.prefix, 2)) {
      this.message(packet[1], packet.slice(2 + this.prefix.length));
    }
    this.silence(this.patience);
  }

  message(kind, text) {
    if (kind === "0") {
      this.tries = 0;
      this.on.connected();
    } else if (kind === "2") {
      const [name, argument] = JSON.parse(text);
      this.on.event(name, argument);
    } else if (kind === "4") {
      this.close();
      this.on.refused(JSON.parse(text).message);
    } else if (kind === "1") {
      this.socket.close();
    }
  }

  // A connection that says nothing for longer than its pings allow is cut, and made anew.
  silence(ms) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.socket.onclose = null;
      this.socket.close();
      this.lost();
    }, ms);
  }

  lost() {
    clearTimeout(this.timer);
    if (this.ended) return;
    this.on.lost();
    const pause = Math.min(LONGEST_PAUSE_MS, 500 * 2 ** this.tries++) * (0.5 + Math.random() / 2);
    this.timer = setTimeout(() => this.open(), pause);
  }
}
