// A client of the broadcaster in JavaScript: node client.cjs URL TOKEN
// Each line of standard input is a JSON array, an event's name and its arguments; what it hears goes to standard output as JSON lines.
const { io } = require("socket.io-client");
const readline = require("node:readline");

const [url, token] = process.argv.slice(2);
const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");

const socket = io(url, { auth: { token } }); // polling first, then WebSocket: the library's own way
socket.on("connect", () => say({ connected: true }));
socket.on("connect_error", (error) => say({ refused: error.message }));
socket.on("event", (event) => say({ event }));

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", async (line) => say({ answer: await socket.timeout(10000).emitWithAck(...JSON.parse(line)) }));
lines.on("close", () => socket.disconnect());
