// A plain page on the wire protocol: joins, resumes, and shows what arrives. No framework, no library.

const $ = (id) => document.getElementById(id);
const rand = new Intl.NumberFormat("en-ZA", { style: "currency", currency: "ZAR" });
const MONEY = ["totalOutstanding", "totalArrears", "amountReceivedToday"];
const FINAL = [4401, 4403]; // until there is another token
const MAX_SHOWN = 50;

let position = null; // what we have seen: {epoch, seq, id}
let attempt = 0;
let pastedToken = null;

/** The demo hands out tokens; elsewhere somebody has to paste one. */
async function getToken() {
  const answer = await fetch("/demo/token", { cache: "no-store" }).catch(() => null);
  if (answer?.ok) return answer.text();
  if (pastedToken) return pastedToken;
  $("sign-in").hidden = false;
  show("a token is needed");
  return new Promise((resolve) => {
    $("sign-in").onsubmit = (event) => {
      event.preventDefault();
      $("sign-in").hidden = true;
      resolve((pastedToken = $("token").value.trim()));
    };
  });
}

/** The tenant is in the token; the gateway verifies it, we only read it. */
function tenantOf(token) {
  const base64 = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
  const { tenantId } = JSON.parse(atob(base64));
  return Array.isArray(tenantId) ? tenantId[0] : tenantId;
}

async function join(socket) {
  const token = await getToken();
  const data = { tenantId: tenantOf(token), token };
  if (position) Object.assign(data, { lastSeq: position.seq, lastId: position.id, epoch: position.epoch });
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ event: "join", data }));
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(`${scheme}//${location.host}/dashboard`, "crechebooks.dashboard.v1");
  let retryInMs = null;
  socket.onopen = () => join(socket);
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === "error") retryInMs = message.data.retryInMs ?? null;
    if (message.type === "token_expiring") join(socket);
    receive(message);
  };
  socket.onclose = ({ code }) => {
    if (FINAL.includes(code)) pastedToken = null;
    attempt += 1;
    const wait = retryInMs ?? Math.random() * Math.min(30_000, 1000 * 2 ** attempt);
    show(`reconnecting in ${Math.ceil(wait / 1000)} s`, "trouble");
    setTimeout(connect, wait);
  };
}

function receive({ type, timestamp, seq, id, data }) {
  switch (type) {
    case "joined":
      attempt = 0;
      $("tenant").textContent = data.tenantId;
      if (!data.recovered || !position) position = { epoch: data.epoch, seq: data.seq };
      show("live", "live");
      break;
    case "resync":
      position = { epoch: data.epoch, seq: data.seq };
      break;
    case "degraded":
      show(`stale since ${time(data.since)}`, "trouble");
      break;
    case "restored":
      show("live", "live");
      break;
    case "disabled":
      show("live updates are switched off", "trouble");
      break;
    default:
      if (seq === undefined || seq <= position.seq) return;
      position = { ...position, seq, id };
      event(type, timestamp, data);
  }
}

function event(type, timestamp, data) {
  switch (type) {
    case "payment_received":
      return add("payment", timestamp, `${data.parentName} paid for ${data.childName} (${data.invoiceNumber})`, rand.format(data.amount));
    case "invoice_status_changed":
      return add("invoice", timestamp, `${data.invoiceNumber}: ${data.previousStatus} → ${data.newStatus}`, "");
    case "arrears_alert":
      return add("arrears", timestamp, `${data.parentName} is ${data.daysOverdue} days overdue`, rand.format(data.totalArrears));
    case "metrics_updated":
      for (const name of MONEY) $(name).textContent = rand.format(data[name]);
      $("accountsInArrears").textContent = data.accountsInArrears;
  }
}

function add(kind, timestamp, text, amount) {
  const item = document.createElement("li");
  item.className = kind;
  const [when, what, sum] = ["time", "span", "strong"].map((tag) => item.appendChild(document.createElement(tag)));
  when.textContent = time(timestamp);
  when.dateTime = timestamp;
  what.textContent = text;
  sum.textContent = amount;
  $("events").prepend(item);
  while ($("events").children.length > MAX_SHOWN) $("events").lastChild.remove();
}

const time = (timestamp) => new Date(timestamp).toLocaleTimeString("en-ZA", { hour12: false });

function show(text, kind = "") {
  $("state").textContent = text;
  $("state").className = kind;
}

connect();
