import { useEffect, useRef, useState } from "react";

const COUNTING_MS = 500;

const prefersStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Counts from the last value to the new one, slower towards the end. */
export function useCounting(value: number | null): number | null {
  const [shown, setShown] = useState(value);
  const from = useRef(value);
  useEffect(() => {
    const start = from.current;
    if (value === null || start === null || prefersStill() || document.hidden) {
      from.current = value;
      setShown(value);
      return;
    }
    const began = performance.now();
    let frame = requestAnimationFrame(function step(now: number) {
      const part = Math.min(1, Math.max(0, now - began) / COUNTING_MS);
      const eased = 1 - (1 - part) ** 3;
      from.current = part < 1 ? start + (value - start) * eased : value;
      setShown(from.current);
      if (part < 1) frame = requestAnimationFrame(step);
    });
    return () => cancelAnimationFrame(frame);
  }, [value]);
  return shown;
}

/** The value: at once after a quiet time, and at most every `ms` in a burst, so that it can be read. */
export function usePaced<T>(value: T, ms: number): T {
  const [paced, setPaced] = useState(value);
  const last = useRef(0);
  useEffect(() => {
    if (value === paced) return;
    const show = () => {
      last.current = performance.now();
      setPaced(value);
    };
    const wait = last.current + ms - performance.now();
    if (wait <= 0) return show();
    const timer = setTimeout(show, wait);
    return () => clearTimeout(timer);
  }, [value, paced, ms]);
  return paced;
}

/** The seconds until that moment, counted down; null without a moment. */
export function useCountdown(until: number | null): number | null {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    if (until === null) return;
    setNow(Date.now());
    const timer = setInterval(() => setNow(Date.now()), 250);
    return () => clearInterval(timer);
  }, [until]);
  return until === null ? null : Math.max(0, Math.ceil((until - now) / 1000));
}
