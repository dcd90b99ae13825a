// What undo and redo go back and forth between.

const MOST = 200;
const TOGETHER = 1000; // milliseconds: letters typed in less are undone together

export class History {
  #before = [];
  #after = [];
  #last = { type: null, time: 0 };

  /** Remember how things were before a change of this type; null is a change of its own kind each time. */
  note(moment, type) {
    const now = performance.now();
    const goesOn = type !== null && type === this.#last.type && now - this.#last.time < TOGETHER;
    this.#last = { type, time: now };
    this.#after = [];
    if (goesOn) return;
    this.#before.push(moment);
    if (this.#before.length > MOST) this.#before.shift();
  }

  get canUndo() {
    return this.#before.length > 0;
  }

  /** The moment to go back to from the present one, or undefined. */
  undo(present) {
    return this.#step(this.#before, this.#after, present);
  }

  redo(present) {
    return this.#step(this.#after, this.#before, present);
  }

  #step(from, to, present) {
    const moment = from.pop();
    if (moment) to.push(present);
    this.#last = { type: null, time: 0 };
    return moment;
  }
}
