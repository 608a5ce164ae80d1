import { useContext, useEffect, useState } from "react";
import { WebSocketContext } from "../../src/react/index.js";
import { addFolded, type Folded, formatFolded, formatRand } from "./format.js";

/** The shortest time between two sentences for a screen reader. */
const EVERY_MS = 3_000;

/** Announces events to screen readers, a burst in one sentence. */
export function Announcer() {
  const socket = useContext(WebSocketContext);
  const [text, setText] = useState("");
  useEffect(() => {
    let payments: string[] = [];
    let received = 0;
    let alerts: string[] = [];
    let folded: Folded = {};
    let timer: ReturnType<typeof setTimeout> | undefined;
    const say = () => {
      timer = undefined;
      const sentences = [...alerts];
      if (payments.length > 1) sentences.unshift(`${payments.length} payments, ${formatRand(received)}.`);
      else sentences.unshift(...payments);
      sentences.push(...[formatFolded(folded)].filter(Boolean));
      if (sentences.length > 0) {
        setText(sentences.join(" "));
        timer = setTimeout(say, EVERY_MS);
      }
      payments = [];
      alerts = [];
      folded = {};
      received = 0;
    };
    const stop = socket?.onEvent((event) => {
      if (event.type === "payment_received") {
        payments.push(`${event.data.parentName} paid ${formatRand(event.data.amount)}.`);
        received += event.data.amount;
      } else if (event.type === "arrears_alert") {
        alerts.push(`${event.data.parentName} is ${event.data.daysOverdue} days overdue.`);
      } else if (event.type === "metrics_updated") {
        folded = addFolded(folded, event.data.condensed ?? {});
      }
      timer ??= setTimeout(say, 0);
    });
    return () => {
      stop?.();
      clearTimeout(timer);
    };
  }, [socket]);
  return <p className="for-listeners" aria-live="polite">{text}</p>;
}
