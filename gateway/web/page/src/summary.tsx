import { useContext, useEffect, useState } from "react";
import { WebSocketContext } from "../../src/react/index.js";
import { addFolded, type Folded, formatFolded } from "./format.js";

/** How long the summary is shown after the last condensed event. */
const SHOWN_MS = 60_000;

/** How many events were folded into figures instead of being shown one by one, as when a month's invoices are written at once. */
export function Summary() {
  const socket = useContext(WebSocketContext);
  const [folded, setFolded] = useState<Folded>({});
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const stop = socket?.onEvent((event) => {
      const condensed = event.type === "metrics_updated" && event.data.condensed;
      if (!condensed) return;
      setFolded((before) => addFolded(before, condensed));
      clearTimeout(timer);
      timer = setTimeout(() => setFolded({}), SHOWN_MS);
    });
    return () => {
      stop?.();
      clearTimeout(timer);
    };
  }, [socket]);
  return <p className="note">{formatFolded(folded)}</p>;
}
