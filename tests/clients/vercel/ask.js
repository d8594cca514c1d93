// Asks the server of HEADLIGHT_CLIENTS_URL through Vercel's AI SDK and its default provider, and prints what came as JSON.

import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [api, name, prompt] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: `${process.env.HEADLIGHT_CLIENTS_URL}/v1`, apiKey: "none" });
const model = api === "responses" ? openai(name) : openai.chat(name);
const asked = { model, prompt, temperature: 0, maxOutputTokens: 60 };
const Weather = z.strictObject({ city: z.string().max(20), unit: z.enum(["celsius", "fahrenheit"]) });

const calls = [];
const getWeather = tool({
  description: "The weather in a city.",
  inputSchema: Weather,
  execute: async (call) => {
    calls.push(call);
    return "It rains.";
  },
});

const whole = await generateText(asked);
let streamed = "";
for await (const part of streamText(asked).textStream) streamed += part;
const { object } = await generateObject({ ...asked, schema: Weather });
const called = await generateText({
  ...asked,
  tools: { getWeather },
  toolChoice: "required",
  stopWhen: stepCountIs(2),
  // The second step reads what the tool returned.
  prepareStep: ({ stepNumber }) => (stepNumber > 0 ? { toolChoice: "none" } : {}),
});
console.log(JSON.stringify({ whole: whole.text, streamed, object, calls, after: called.text, steps: called.steps.length }));
